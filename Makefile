# make help lists what there is. Needs Go 1.26, git and, for everything in network namespaces, Linux and root.
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
OUT     := .build# programs of the tests, tallies
# The commit goes into the binary where there is one to tell.
VCS     := $(shell git rev-parse --verify -q HEAD >/dev/null 2>&1 && echo true || echo false)
BUILD   := $(GO) build -buildvcs=$(VCS) -ldflags='-s -w'
# One set of flags for all that is compiled, programs, tests and what lint needs: it is compiled once. The tags leave out
# what nobody calls, nearly a MiB: HTTP/2, since ours is spoken over local sockets, and a printer of manuals in Markdown.
export CGO_ENABLED := 0
export GOFLAGS := $(strip $(GOFLAGS) -trimpath -tags=nethttpomithttp2,urfave_cli_no_docs)
TOOL    := $(GO) tool -modfile=tools/go.mod
# Product packages build everywhere; what makes namespaces is Linux only.
LAB     := /test/(netlab|cluster|demo|e2e|bench|install|runtimes)
# Packages whose tests build and start whole clusters: one at a time, without the race detector's slowness.
NETWORK := /test/
# All others run plain and under the race detector; there in two parts, since Go 1.26's detector crashes now and then
# where several threads share a bubble of testing/synctest (golang.org/issue/78156): those get one CPU, the rest all.
# weft/test reads and builds, nothing runs beside it. The second that the detector sleeps at the end of a process is off.
PLAIN   = $$($(GO) list ./... | grep -v '$(NETWORK)')
BUBBLED = $$($(IMPORTS) | awk '$$1 !~ "/test(/|$$)" && /testing.synctest/ { print $$1 }')
RACED   = $$($(IMPORTS) | awk '$$1 !~ "/test(/|$$)" && !/testing.synctest/ { print $$1 }')
IMPORTS := $(GO) list -f '{{.ImportPath}} {{.TestImports}} {{.XTestImports}}' ./...
STORIES = $$($(GO) list ./... | grep '$(NETWORK)')
RACE    := env CGO_ENABLED=1 GORACE=atexit_sleep_ms=0 $(GO) test -race -json -count=1 -timeout 15m
# Lives of clusters that make sim plays; or one of them with everything said, by its seed or from a file.
SEEDS ?= 2000
FIRST ?= 0
SEED  ?=
PLAN  ?=
SIM    = $(GO) test -count=1 -timeout 120m $(1) -run '$(if $(SEED)$(PLAN),^TestSeeds$$,^Test(Seeds|Autoscaling|AThousand|Schedule15))' \
         ./ipam/ipamsim -args -full -seeds $(SEEDS) -first $(FIRST) $(if $(SEED),-seed $(SEED)) $(if $(PLAN),-plan $(abspath $(PLAN)))
# For each fuzz target, and for each benchmark.
FUZZTIME  ?= 30s
BENCHTIME ?= 1s
RUN       ?= .

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## bin/weft (and bin/weft-cni): static, stripped
	@mkdir -p bin
	@for cmd in cmd/*/; do $(BUILD) -o bin/$$(basename $$cmd) ./$$cmd; done
	@ls -l bin | awk 'NR > 1 { printf "  bin/%s %.1f MiB\n", $$NF, $$5 / 1048576 }'

.PHONY: demo
demo: build lab-programs ## three machines on this one: join, ping, pages, throughput (KEEP=1 leaves them standing)
	@KEEP=$(KEEP) $(OUT)/demo -weft bin/weft -labprobe $(OUT)/labprobe

.PHONY: demo-clean
demo-clean: lab-programs ## remove what make demo KEEP=1 left standing
	@$(OUT)/demo -clean

.PHONY: lab-programs
lab-programs:
	@mkdir -p $(OUT)
	@$(GO) build -o $(OUT)/ ./test/labprobe ./test/demo ./test/count

# Every stage runs, whatever the ones before it said; the last line counts, and decides.
STAGE = $(OUT)/count -tally $(OUT)/tally
.PHONY: test
test: build lab-programs ## what CI runs: lint, unit tests, race detector, network namespaces; ends with the count
	@rm -f $(OUT)/tally
	@$(STAGE) -stage lint -- $(MAKE) --no-print-directory lint
	@$(STAGE) -stage unit -- $(GO) test -json -count=1 -shuffle=on -run '$(RUN)' $(PLAIN)
	@$(STAGE) -stage simulator -- $(call SIM,-json)
	@$(STAGE) -stage 'race, made time' -- $(RACE) -cpu 1 -run '$(RUN)' $(BUBBLED)
	@$(STAGE) -stage 'race, real time' -- $(RACE) -run '$(RUN)' $(RACED)
	@$(STAGE) -stage network -- $(GO) test -json -count=1 -p 1 -timeout 25m -run '$(RUN)' $(STORIES)
	@$(SMOKE)
	@$(OUT)/count -sum -tally $(OUT)/tally

.PHONY: test-long
test-long: build lab-programs ## the long matrices too: stories under the race detector, each three times (an hour)
	@rm -f $(OUT)/tally
	@$(STAGE) -stage unit -- env WEFT_TEST_LONG=1 $(GO) test -json -count=3 -shuffle=on -timeout 60m -run '$(RUN)' $(PLAIN)
	@$(STAGE) -stage network -- env WEFT_TEST_LONG=1 CGO_ENABLED=1 $(GO) test -json -count=3 -race -p 1 -timeout 60m -run '$(RUN)' $(STORIES)
	@$(OUT)/count -sum -tally $(OUT)/tally

.PHONY: release
release: ## dist/: archives, deb, rpm, images, SHA256SUMS for amd64 and arm64 (VERSION=v0.1.0; default: the tag)
	@cd tools/release && $(GO) build -o ../../$(OUT)/release .
	@$(OUT)/release -o dist $(if $(VERSION),-version $(VERSION))

.PHONY: test-release
test-release: ## two releases in different folders have the same bytes; the deb on a Debian; arm64 under qemu
	@cd tools/release && $(GO) test -count=1 -v -timeout 30m .
	@WEFT_TEST_LONG=1 $(GO) test -count=1 -v -timeout 30m ./test/install
	@$(MAKE) --no-print-directory test-arm64

# What is pure, or asks the kernel for sockets and files only: qemu-user knows neither namespaces nor who is at the other end,
# starts no program of another architecture, and rings the timers of one moment in any order.
ARM64 := ./crypto/... ./mesh/... ./ipam/... ./prog/release
.PHONY: test-arm64
test-arm64: ## unit tests of the pure packages as arm64 programs (apt-get install qemu-user-static)
	@GOARCH=arm64 $(GO) test -count=1 -timeout 30m -exec qemu-aarch64-static \
	  -skip 'TestKilledInMidWrite|TestALifeIsAFunctionOfItsSeed' $(ARM64)

# A cluster of N nodes on made time; PHASES of storm,idle,change,churn,halves; NAT is the share that cannot be dialled.
N      ?= 200
NAT    ?= 0.75
PHASES ?= storm,idle,change,churn,halves
STEP   ?= 1m
.PHONY: sim-mesh
sim-mesh: ## the mesh of N=200 nodes in one process, three quarters behind NAT: times, packets, bytes, memory (N=1000: half an hour)
	@GOGC=300 GOMEMLIMIT=8GiB $(GO) test -count=1 -timeout 240m -v -run '^TestLife$$' ./mesh/meshsim \
	  -args -n $(N) -nat $(NAT) -phases $(PHASES) -step $(STEP) | grep -v '^=== '

.PHONY: sim
sim: ## lives of clusters over the real allocator: SEEDS=2000 FIRST=0; one again, shrunk: SEED=n or PLAN=file
	@$(call SIM,-v) | grep -v '^=== '

# Kernels of Debian's: its own one, and a newer one. What one package tests runs in one boot of each. VM_STORIES are those that
# need the kernel's WireGuard, one after the other: a machine is emulated on one processor, which is enough for one cluster.
# WEFT_TEST_LONG=1 adds the long ones.
KERNELS    ?= linux-image-cloud-amd64 linux-image-6.12-cloud-amd64
VM_LEAKS    = ^TestNoTransportLeaks$$/^wireguard$$
VM_STORIES ?= ^TestWireGuard|$(VM_LEAKS)
VM_DRIVER   = -parallel 3 -run Kernel ./router/wireguard
VM_CLUSTER  = -parallel 1 -run '$(1)' ./test/e2e
VM_TEST     = $(GO) test -json -count=1 -timeout 20m -exec '$(CURDIR)/$(OUT)/vm -limit 20m -kernel $(1)'
# What make test takes of them: the driver and the leak story on one kernel, where that is to be had.
SMOKE       = if [ '$(RUN)' != . ]; then true; \
	elif [ "$$(uname -m)" = x86_64 ] && grep -qx ID=debian /etc/os-release && command -v qemu-system-x86_64 >/dev/null; then \
	  $(VM_FILES); \
	  $(STAGE) -stage 'kernel WireGuard' -- $(call VM_TEST,$(firstword $(KERNELS))) $(VM_DRIVER); \
	  $(STAGE) -stage 'kernel WireGuard, leaks' -- $(call VM_TEST,$(firstword $(KERNELS))) $(call VM_CLUSTER,$(VM_LEAKS)); \
	else echo 'kernel WireGuard is left out: its virtual machine needs Debian on amd64, and apt-get install qemu-system-x86'; fi
VM_FILES    = $(GO) build -o $(OUT)/ ./test/vm; mkdir -p $(OUT)/vm-files; cp bin/weft $(OUT)/labprobe $(OUT)/vm-files/; \
	export WEFT_VM_FILES=$(CURDIR)/$(OUT)/vm-files
.PHONY: test-vm
test-vm: build lab-programs ## kernel WireGuard and bad lines, in virtual machines with two kernels (needs qemu)
	@rm -f $(OUT)/tally
	@$(VM_FILES); \
	$(foreach k,$(KERNELS), \
	  $(STAGE) -stage '$(k), driver' -- $(call VM_TEST,$(k)) $(VM_DRIVER); \
	  $(STAGE) -stage '$(k), cluster' -- $(call VM_TEST,$(k)) $(call VM_CLUSTER,$(VM_STORIES));) true
	@$(OUT)/count -sum -tally $(OUT)/tally

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (30s) each
	@for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p; \
	  done; done

.PHONY: bench
bench: build lab-programs ## speed against wireguard-go, VXLAN and a plain cable, then the benchmarks of the packages
	@if [ -n "$$(ls test/bench/*.go 2>/dev/null)" ]; then $(GO) run ./test/bench; fi
	@$(GO) test -run '^$$' -bench '$(RUN)' -benchmem -benchtime $(BENCHTIME) $(PLAIN) | grep -E '^(Bench|pkg|cpu)'

# The kernel's WireGuard through weft and by hand, in a machine whose processor is emulated: only the ratios say something.
.PHONY: bench-vm
bench-vm: build lab-programs ## kernel WireGuard through weft against the same by hand, in a virtual machine: device, route, CPU
	@$(GO) build -o $(OUT)/ ./test/vm
	@mkdir -p $(OUT)/vm-bench && cp bin/weft $(OUT)/labprobe $(OUT)/vm-bench/
	@$(GO) build -o $(OUT)/vm-bench/ ./test/bench/wireguard ./test/bench/blast
	@$(GO) build -o $(OUT)/bench ./test/bench
	@$(foreach k,$(KERNELS),$(OUT)/vm -limit 20m -kernel $(k) -files $(OUT)/vm-bench $(OUT)/bench -weft /files/weft \
	  -labprobe /files/labprobe -built /files -pick 'weft wireguard /' -column on -pairs 8 -for 2s &&) true

.PHONY: lint
lint: ## golangci-lint, and vet for another system than Linux
	@$(TOOL) golangci-lint run
	@GOOS=darwin $(GO) vet $$($(GO) list ./... | grep -Ev '$(LAB)')

.PHONY: fmt
fmt: ## format as lint wants it
	@$(TOOL) golangci-lint fmt

.PHONY: big
big: ## the ten longest files: look for the second noun in them
	@git ls-files -co --exclude-standard '*.go' | xargs wc -l | grep -v ' total$$' | sort -rn | head

.PHONY: clean
clean: ## remove what make made, caches of Go excepted
	rm -rf bin dist $(OUT)
