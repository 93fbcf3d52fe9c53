# What site/install.md shows, line for line, typed by a test on a machine with systemd.
set -eux

export WEFT_URL=https://downloads.example.org
curl -fsSL $WEFT_URL/weft-join.sh | sudo WEFT_URL=$WEFT_URL sh -s -- --dry-run weft1…
test ! -e /usr/local/bin/weft
curl -fsSL $WEFT_URL/weft-join.sh | sudo WEFT_URL=$WEFT_URL sh -s -- weft1…
weft status
curl -fsSL $WEFT_URL/weft-join.sh | sudo WEFT_URL=$WEFT_URL sh

cd /lab/dist
sudo sh ./weft-join.sh --archive ./weft-linux-amd64.tar.gz
cd /

sudo systemctl restart weft
systemctl status --no-pager weft weft-wire
journalctl --no-pager -u weft -u weft-wire

sudo /usr/local/share/weft/weft-join.sh --uninstall
test ! -e /usr/local/bin/weft
