# swapback's work, by name. "make help" lists the targets.

GO         ?= go
BIN        := build/bin
HARNESS    := build/ci
GOBUILD    := CGO_ENABLED=0 $(GO) build -trimpath

# What the test machine is made of; see "build/ci/vm -help".
export KERNEL ACCEL DISKS DISK_SIZE DISK_DIR MEM CPUS VM_TIMEOUT OUT ICOUNT NATIVE QUIET VM_ENV

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
	@if ls -d cmd/*/ >/dev/null 2>&1; then $(GOBUILD) -o $(BIN)/ ./cmd/...; fi
endif

.PHONY: harness
harness: # the programs behind the test machine
	@mkdir -p $(HARNESS)
	@$(GOBUILD) -o $(HARNESS)/ ./ci/vm ./ci/guest

.PHONY: vm
vm: build harness ## run CMD='…' as root in a fresh virtual machine (KERNEL, DISKS, DISK_SIZE, DISK_DIR, OUT, …)
	@$(HARNESS)/vm

.PHONY: clean
clean: ## remove everything that was built
	rm -rf build
