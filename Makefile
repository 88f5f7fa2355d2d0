# swapback's work, by name. "make help" lists the targets.

GO         ?= go
PREFIX     ?= /usr/local
BIN        := build/bin
HARNESS    := build/ci
GOBUILD    := CGO_ENABLED=0 $(GO) build -trimpath

# A checkout that belongs to somebody else: git, and so the version in the
# programs, is not to be had.
ifneq ($(shell git rev-parse HEAD >/dev/null 2>&1 && echo yes),yes)
export GOFLAGS := $(GOFLAGS) -buildvcs=false
endif

# The race detector needs cgo, and cgo a C compiler.
RACE        = $(shell test "$$($(GO) env CGO_ENABLED)" = 1 && command -v "$$($(GO) env CC)" >/dev/null && echo -race)

# What the test machine is made of; see "build/ci/vm -help".
export PKG RUN V TEST_TIMEOUT KERNEL ACCEL DISKS DISK_SIZE DISK_DIR MEM CPUS VM_TIMEOUT OUT ICOUNT NATIVE QUIET VM_ENV

# CMD is handed on as it was typed: make must not look for variables in it, and
# must not put a second, escaped copy into the environment of what it starts.
VM_CMD     := $(value CMD)
export VM_CMD
unexport CMD
MAKEOVERRIDES :=

.DEFAULT_GOAL := help
.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: build
build: ## build every program into build/bin (NOBUILD=1 leaves that out of other targets)
ifeq ($(NOBUILD),)
	@mkdir -p $(BIN)
	@$(GOBUILD) -o $(BIN)/ ./cmd/... ./bench ./bench/backup ./bench/pause ./demo/... ./ublk/examples/serve
	@# Another build of the daemon, for the tests of an upgrade.
	@$(GOBUILD) -ldflags '-X github.com/swapback/swapback/version.Version=next' -o $(BIN)/swapbackd-next ./cmd/swapbackd
endif

.PHONY: harness
# Crash tests run programs that can be told where to die; these are never installed.
harness: # the programs behind the test machine, and those of the crash tests
	@mkdir -p $(HARNESS)
	@$(GOBUILD) -o $(HARNESS)/ ./ci/vm ./ci/guest ./ci/testrun ./ci/tools
	@mkdir -p build/failpoint
	@$(GOBUILD) -tags failpoint -o build/failpoint/ ./cmd/...

.PHONY: install
install: build ## programs, units and udev rules into the system (DESTDIR, PREFIX)
	install -D -t $(DESTDIR)$(PREFIX)/bin $(BIN)/swapback
	install -D -t $(DESTDIR)$(PREFIX)/sbin $(BIN)/swapbackd $(BIN)/swapback-agent
	install -D -m 644 -t $(DESTDIR)/etc/systemd/system dist/systemd/*.service
	install -D -m 644 -t $(DESTDIR)/etc/udev/rules.d dist/udev/*.rules

.PHONY: vm
vm: build harness ## run CMD='…' as root in a fresh virtual machine (KERNEL, DISKS, DISK_SIZE, DISK_DIR, OUT, …)
	@$(HARNESS)/vm

.PHONY: demo
demo: build harness ## the main job: damage, recovery, proof
	@COLOR=$$(test -t 1 && test -z "$$NO_COLOR" && echo 1) $(HARNESS)/vm -again -env COLOR -- demo/run.sh

.PHONY: test
test: ## unit tests, then integration tests on both kernels (all of the newest)
	@$(MAKE) test-unit
	@$(MAKE) test-vms

# The machines of "make test": KERNEL-GROUP, those that take longest first. On the
# oldest kernel it runs what is nearest to the kernel: the servers and their death, the
# pool, and hosts. "make test-vm KERNEL=6.12" runs all there.
TEST_VMS = 7.3-crash 7.3-load 7.3-daemon 7.3-rest 7.3-long 6.12-load 7.3-network 6.12-daemon 6.12-rest
PKG_7.3-crash   = ./soak/crash
PKG_7.3-load    = ./soak/power ./soak/storm
PKG_7.3-long    = ./soak/chain ./soak/disks ./soak/limits ./soak/model
PKG_7.3-daemon  = ./cmd/swapbackd
PKG_7.3-network = ./soak/network
PKG_7.3-idle    = ./soak/pauses
PKG_7.3-rest    = $(filter-out $(PKG_7.3-crash) $(PKG_7.3-load) $(PKG_7.3-long) $(PKG_7.3-daemon) $(PKG_7.3-network) $(PKG_7.3-idle),$(shell $(GO) list -f '.{{slice .ImportPath (len .Module.Path)}}' ./...))
PKG_6.12-load   = ./soak/storm
RUN_6.12-load   = ^Test(KillStorm|UpgradeUnderLoad)$$
PKG_6.12-daemon = ./cmd/swapbackd
RUN_6.12-daemon = ^Test(Host|Multipath|Export|SwapUnderLoad|Stopped.*|FioVerify)$$
PKG_6.12-rest   = ./ublk/... ./dmswap/... ./holders ./nvmeof/...
PKG_6.12-idle   = ./soak/pauses

# These wait for minutes, and run beside the others.
IDLE_VMS = 7.3-idle 6.12-idle

VMS_AT_ONCE = --no-print-directory --output-sync=target --keep-going NOBUILD=1

# An emulated machine keeps hardly more than one processor busy, so there are two
# at a time, beside those that idle. What each says is shown when it has ended.
.PHONY: test-vms
test-vms: build harness ## integration tests on both kernels, two machines at a time (MACHINES=1: one)
	@$(MAKE) $(VMS_AT_ONCE) -j$(words $(IDLE_VMS)) $(IDLE_VMS:%=test-on-%) & idle=$$!; \
	$(MAKE) $(VMS_AT_ONCE) -j$(or $(MACHINES),2) $(TEST_VMS:%=test-on-%); status=$$?; \
	wait $$idle && exit $$status

.PHONY: $(TEST_VMS:%=test-on-%) $(IDLE_VMS:%=test-on-%)
$(TEST_VMS:%=test-on-%) $(IDLE_VMS:%=test-on-%): test-on-%: # build and harness have been made
	@echo "== Linux $(subst -,: ,$*)"
	@KERNEL=$(firstword $(subst -, ,$*)) PKG="$(PKG_$*)" RUN='$(or $(RUN_$*),$(RUN))' CPUS=$${CPUS:-4} $(HARNESS)/testrun

.PHONY: test-unit
test-unit: ## unit tests: no root, no kernel features (with -race where there is a C compiler)
	$(GO) test -timeout 20m $(RACE) $$($(GO) list ./... | grep -v -e swapback/backup$$ -e swapback/dmswap$$)
	$(GO) test -timeout 20m ./backup ./dmswap
	$(if $(RACE),$(GO) test -timeout 20m $(RACE) -short ./backup ./dmswap)

.PHONY: test-vm
# Four processors: the kernel gives a device no more queues than there are.
test-vm: build harness ## integration tests on KERNEL (PKG=./ublk RUN=regexp V=1 narrow it down)
	@CPUS=$${CPUS:-4} $(HARNESS)/testrun

.PHONY: fuzz
# What it finds stays in testdata/fuzz beside the target; see ci/fuzz.
fuzz: ## every fuzz target for FUZZTIME (PKG=./backup/... RUN=regexp narrow it down)
	@mkdir -p $(HARNESS)
	@$(GOBUILD) -o $(HARNESS)/ ./ci/fuzz
	@$(HARNESS)/fuzz -time $(or $(FUZZTIME),10s) -run '$(RUN)' $(PKG)

# How long each test of soak/ is; without a number it is short, as in "make test".
# A round of load is at most 20 MiB in the log of the power cuts, which has one disk.
SOAK = SOAK_KILLS=$(or $(KILLS),200) SOAK_AGENT_KILLS=$(or $(AGENT_KILLS),50) SOAK_COMMITS=$(or $(COMMITS),100) \
	SOAK_UPGRADES=$(or $(UPGRADES),50) SOAK_POINTS=$(or $(POINTS),3000) SOAK_ROUNDS=$(or $(ROUNDS),20) \
	SOAK_CALLS=$(or $(CALLS),10000) SOAK_SWAPS=$(or $(SWAPS),10000) SOAK_VOLUMES=$(or $(VOLUMES),256) \
	SOAK_CHAIN=$(or $(CHAIN),50) SOAK_CRASH=$(or $(CRASH),all) SOAK_SEED=$(or $(SEED),$(shell date +%s))

.PHONY: soak
soak: build harness ## hours: soak/ in its long form, then fuzzing (KILLS, AGENT_KILLS, COMMITS, UPGRADES, POINTS, ROUNDS, CALLS, SWAPS, VOLUMES, CHAIN, CRASH, SEED, FUZZTIME; PKG=./soak/storm)
	@VM_ENV="$$VM_ENV $(SOAK)" PKG=$${PKG:-./soak/...} V=1 TEST_TIMEOUT=$${TEST_TIMEOUT:-8h} VM_TIMEOUT=$${VM_TIMEOUT:-24h} \
		CPUS=$${CPUS:-4} $(HARNESS)/testrun
ifeq ($(PKG),)
	@$(MAKE) --no-print-directory fuzz FUZZTIME=$(or $(FUZZTIME),5m)
endif

.PHONY: vm-selftest
vm-selftest: harness ## the test machine's own promises, on both kernels
	@ci/selftest.sh 7.3
	@ci/selftest.sh 6.12

.PHONY: lint
lint: ## gofmt, go vet, staticcheck, govulncheck
	@ci/lint.sh

# The benchmark is exact (the machine's clock counts instructions) unless
# MODE=wall says otherwise; without a machine there is only the wall clock.
BENCH_EXACT = $(if $(filter wall,$(MODE))$(filter-out 0 false,$(NATIVE)),,1)
BENCH_VM    = ICOUNT=$(BENCH_EXACT) OUT=build/bench VM_TIMEOUT=$${VM_TIMEOUT:-3h} $(HARNESS)/vm -again --

.PHONY: bench
bench: build harness ## the whole benchmark, exact (MODE=wall, NATIVE=1 DISK_DIR=…: by the clock); build/bench/index.html
	@rm -f build/bench/result.json build/bench/scale.json build/bench/index.html
	@$(BENCH_VM) 'bench run -out $$SWAPBACK_OUT'
	@CPUS=$${CPUS:-4} $(BENCH_VM) 'bench scale $(if $(BENCH_EXACT),-check) -out $$SWAPBACK_OUT'
ifeq ($(NATIVE),)
	@$(MAKE) --no-print-directory NOBUILD=1 bench-pause
	@$(BIN)/bench report build/bench
endif

# What hosts get by NVMe/TCP, beside the kernel's target on the raw device. Four
# processors, as the initiator makes no more queues than there are. Without erms, with
# which exact mode counts an instruction for each byte copied to or from a process, but
# not for those copied inside the kernel (CPU=max: with it).
NVME_ROWS = randread-4k-qd1,randread-4k-qd32,randwrite-4k-qd1,randwrite-4k-qd32,read-128k-qd8,write-128k-qd8
comma := ,
.PHONY: bench-nvme
bench-nvme: build harness ## exported volumes beside the kernel's NVMe/TCP target, exact (MODE=wall: by the clock); build/bench/nvme/index.html
	@mkdir -p build/bench/nvme
	@CPUS=$${CPUS:-4} $(if $(BENCH_EXACT),CPU=$${CPU:-max$(comma)-erms}) $(BENCH_VM) 'bench run -remote -rows $(NVME_ROWS) -out $$SWAPBACK_OUT/nvme'

.PHONY: bench-short
bench-short: build harness ## the rows that are compared with other servers, in exact mode
	@$(BENCH_VM) 'bench run -short -out $$SWAPBACK_OUT'

.PHONY: bench-check
bench-check: build harness ## bench-short; fails where a row fell below bench/baseline.json
	@MODE= NATIVE= $(MAKE) --no-print-directory NOBUILD=1 bench-short
	@$(BIN)/bench check bench/baseline.json build/bench/result.json

.PHONY: bench-baseline
bench-baseline: bench-short ## make bench/baseline.json anew; commit it with the reason
	@cp build/bench/result.json bench/baseline.json

.PHONY: bench-pause
# Exact mode unless MODE=wall, and then on one processor: QEMU lets emulated
# processors take turns, and one that spins for a lock of the other spins on the
# clock that all share. PAUSE_FLAGS are those of bench/pause.
bench-pause: build harness ## the swap pause beside the kernel's floor (MODE=wall: by the clock, on the machine's disks)
	@OUT=build/bench VM_TIMEOUT=$${VM_TIMEOUT:-2h} DISK_SIZE=$${DISK_SIZE:-16G} \
		$(if $(filter wall,$(MODE)),,ICOUNT=1 CPUS=$${CPUS:-1}) VM_ENV="$$VM_ENV MODE=$(or $(MODE),exact)" \
		$(HARNESS)/vm -again -- 'bench/pause/run.sh $$SWAPBACK_OUT/pause-$$MODE.json $(PAUSE_FLAGS)'

.PHONY: bench-backup
# As root all page caches are dropped before each row; otherwise those
# of the files that it uses.
bench-backup: build harness ## backup and restore beside borg, restic and cp, on this host (RUNS=5 SIZE=3G DATA=fio|text CACHE=warm|cold DIR=…; CHECK=1: fail where a target is missed)
	@$(HARNESS)/tools backup
	@$(BIN)/backup run -rounds $(or $(RUNS),5) -size $(or $(SIZE),3G) -data $(or $(DATA),fio) -cache $(or $(CACHE),warm) -dir $(or $(DIR),build/bench-backup) $(if $(filter-out 0,$(CHECK)),-check)

.PHONY: ci
ci: ## what .ci/run does
	@$(MAKE) test
	@# The benchmark counts instructions: what runs beside it changes nothing there.
	@$(MAKE) --output-sync=target --keep-going -j2 FUZZTIME=5s bench-check lint fuzz

.PHONY: clean
clean: ## remove everything that was built
	rm -rf build
