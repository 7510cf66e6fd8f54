# make lists the targets.

GO       ?= go
FUZZTIME ?= 20s
COUNT    ?= 1
SOAK     ?= 10000000
STEPS    ?= 100000

.DEFAULT_GOAL := help
.PHONY: help build demo test check vet lint bench bench-extism scale fuzz soak model ledger guests services clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

build: ## bin/wasmsidecar, static
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/wasmsidecar ./cmd/wasmsidecar

demo: build ## 10 000 jobs through three modules on the embedded server
	$(GO) run ./scripts/demo -sidecar bin/wasmsidecar

test: ## all tests, against real servers; STRICT=1 allows no skipped test and no fake Kafka
	@scripts/test $(if $(STRICT),-strict) -race -p=2 -parallel=8 -count=$(COUNT) -timeout=20m ./...

check: vet lint test ## all that a change must pass

vet: ## format and go vet
	@files=$$(gofmt -l .); if [ -n "$$files" ]; then echo "not formatted; run gofmt -w on:" $$files >&2; exit 1; fi
	$(GO) vet ./...

lint: bin/golangci-lint ## golangci-lint (built by the first run: four minutes)
	bin/golangci-lint run ./...

# The linter is in a module of its own, so that what it needs is in nobody's go.mod.
bin/golangci-lint: scripts/lint/go.mod scripts/lint/go.sum
	$(GO) build -C scripts/lint -o $(CURDIR)/$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

bench: services ## benchmarks, with ratios to the raw clients
	. ./.services/env && GOGC=400 $(GO) test -p=1 -timeout=60m -run '^$$' -bench . -benchmem ./...

bench-extism: ## the same plug-ins here and under Extism's Go SDK, with ratios; their outcomes too
	cd scripts/extismcompare && $(GO) test ./... && GOGC=400 $(GO) run .

scale: services ## a million jobs that wait or are scheduled, five million outcomes, a hundred routes (an hour and more, 5 GB of memory); SCALE= more flags
	. ./.services/env && $(GO) test -timeout=6h -run '^$$' -bench 'Backlog|Routes|Schedules|Failing|Outcomes' -benchtime 1x -v ./pkg/sidecar -args -scale.own \
		-scale.backlog=1000000 -scale.outcomes=1000000 -scale.schedules=1000000 -scale.lead=4m -scale.spread=5m -scale.failing=1m $(SCALE)
	. ./.services/env && $(GO) test -timeout=2h -run '^$$' -bench 'Outcomes/redis' -benchtime 1x -v ./pkg/sidecar -args -scale.outcomes=5000000

fuzz: ## every fuzz target for FUZZTIME (20s) each
	scripts/fuzz $(FUZZTIME)

soak: ## SOAK=10000000 jobs, which leave memory flat; then the tests that crash and cut, COUNT=20 times unless said
	WASMSIDECAR_SOAK=$(SOAK) $(GO) test -run='^TestSoak$$' -v -count=1 -timeout=6h ./runtime
	@scripts/test -race -tags=soak -p=1 -run='Kill|Crash|Soak|Cut|Drain' -count=$(if $(filter 1,$(COUNT)),20,$(COUNT)) -timeout=6h ./...

model: services ## STEPS=100000 random steps of jobs' lives over each store, held against what is promised, and claimers that compete (WASMSIDECAR_SEED repeats the steps)
	. ./.services/env && WASMSIDECAR_MODEL_STEPS=$(STEPS) $(GO) test -v -run='Model|Contention' -count=1 -timeout=6h ./middleware

ledger: services ## 100 000 jobs over each broker through kills, restarts and cuts: the table of docs/ledger.md (half an hour); LEDGER= more flags
	. ./.services/env && $(GO) test -v -run CrashLedger -count=1 -parallel=1 -timeout=4h ./internal/ledger -args -ledger.full -ledger.jobs=100000 \
		-ledger.spread=6m -ledger.replicas=3 -ledger.kills=30 -ledger.restarts=3 -ledger.cuts=3 -ledger.lease=6s \
		-ledger.out=$(CURDIR)/docs/ledger.md $(LEDGER)

guests: ## the committed example modules from their sources (its head says which compilers)
	examples/guests/build.sh

services: ## Kafka, Redis and NATS for tests, on free ports (scripts/services stop ends them)
	scripts/services start

clean: ## what was built; stops the test servers
	-scripts/services stop
	rm -rf bin .services
