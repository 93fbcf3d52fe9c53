"use strict";
(() => {
  const graph = JSON.parse(document.getElementById("graph").textContent);
  const picture = document.querySelector("main svg");
  const detail = document.getElementById("detail");
  const find = document.getElementById("find");
  const summary = [...detail.childNodes];
  const members = [...picture.querySelectorAll("[data-member]")];
  const pairs = [...picture.querySelectorAll("[data-pair]")];
  const labels = [...picture.querySelectorAll("[data-label]")];
  const place = new Map(graph.nodes.map((n, i) => [n.id, i]));
  let picked = -1;

  const make = (tag, text, className) => {
    const e = document.createElement(tag);
    if (text) e.textContent = text;
    if (className) e.className = className;
    return e;
  };
  const known = (state) => (graph.kinds.includes(state) ? state : "unknown");
  const roundTrip = (ms) => (ms > 0 ? (ms < 10 ? ms.toFixed(1) : ms.toFixed(0)) + " ms" : "");
  const other = (e, id) => graph.nodes[place.get(e.a === id ? e.b : e.a)];
  const touches = (e, id) => e.a === id || e.b === id;

  // Names get the round trip to the member that is picked.
  const names = members.map((m) => m.querySelector(".name"));
  const plain = names.map((n) => (n ? n.textContent : ""));

  function pick(i) {
    picked = i === picked ? -1 : i;
    picture.classList.toggle("picked", picked >= 0);
    const id = picked >= 0 ? graph.nodes[picked].id : "";
    const mine = graph.edges.filter((e) => touches(e, id));
    const near = new Set(mine.map((e) => place.get(other(e, id).id)));
    pairs.forEach((p) => p.classList.toggle("on", touches(graph.edges[p.dataset.pair], id)));
    labels.forEach((l) => l.classList.toggle("on", touches(graph.edges[l.dataset.label], id)));
    members.forEach((m, k) => m.classList.toggle("on", k === picked || near.has(k)));
    const rtt = new Map(mine.map((e) => [place.get(other(e, id).id), roundTrip(e.rtt_ms)]));
    names.forEach((n, k) => {
      if (n && members.length > 7) n.textContent = plain[k] + (rtt.get(k) ? " · " + rtt.get(k) : "");
    });
    show(id, mine);
  }

  function show(id, mine) {
    detail.replaceChildren();
    if (!id) {
      detail.append(...summary);
      return;
    }
    const node = graph.nodes[place.get(id)];
    detail.append(make("h2", node.name));
    const facts = [node.state, node.underlay, { easy: "behind NAT", hard: "behind a hard NAT" }[node.nat], node.relay && "relays for others", node.silent];
    detail.append(make("p", facts.filter(Boolean).join(" · "), "sub"));
    const rank = (e) => graph.kinds.indexOf(known(e.state));
    mine.sort((a, b) => rank(b) - rank(a) || (a.rtt_ms || 1e9) - (b.rtt_ms || 1e9) || other(a, id).name.localeCompare(other(b, id).name));
    const table = make("table");
    for (const e of mine) {
      const row = table.insertRow();
      const who = row.insertCell();
      who.append(make("span", other(e, id).name));
      const how = [e.transport, e.mtu > 0 && "MTU " + e.mtu, e.loss >= 0.001 && (100 * e.loss).toFixed(1) + " % lost", e.reason];
      who.append(make("small", how.filter(Boolean).join(" · ")));
      const state = known(e.state);
      const via = e.via.length ? " via " + (e.a === id ? e.via : [...e.via].reverse()).join(", ") : "";
      row.insertCell().append(make("span", graph.words[state] + via, "is-" + state));
      row.insertCell().append(make("span", roundTrip(e.rtt_ms)));
    }
    detail.append(table);
    const back = make("button", "Show all");
    back.addEventListener("click", () => pick(picked));
    detail.append(make("p"), back);
  }

  members.forEach((m, i) => {
    m.setAttribute("role", "button");
    m.addEventListener("click", (ev) => { ev.stopPropagation(); pick(i); });
    m.addEventListener("keydown", (ev) => { if (ev.key === "Enter" || ev.key === " ") { ev.preventDefault(); pick(i); } });
  });
  picture.addEventListener("click", () => { if (picked >= 0) pick(picked); });
  document.addEventListener("keydown", (ev) => { if (ev.key === "Escape" && picked >= 0) pick(picked); });

  document.querySelectorAll("[data-kind]").forEach((box) => {
    box.hidden = false;
    box.style.cssText = "position:absolute;opacity:0;width:0;height:0";
    box.addEventListener("change", () => {
      picture.querySelectorAll(".pairs." + box.dataset.kind).forEach((g) => g.classList.toggle("off", !box.checked));
      labels.forEach((l) => { if (known(graph.edges[l.dataset.label].state) === box.dataset.kind) l.classList.toggle("off", !box.checked); });
    });
  });

  find.hidden = graph.nodes.length < 8;
  find.addEventListener("input", () => {
    const word = find.value.trim().toLowerCase();
    const i = word ? graph.nodes.findIndex((n) => n.name.toLowerCase().includes(word) || n.id.startsWith(word)) : -1;
    if (i !== picked) pick(i >= 0 ? i : picked);
  });

  // A link may name a member: graph.html#beta.
  const wanted = decodeURIComponent(location.hash.slice(1));
  const at = graph.nodes.findIndex((n) => wanted && n.name === wanted);
  if (at >= 0) pick(at);
  document.documentElement.dataset.ready = "yes";
})();
