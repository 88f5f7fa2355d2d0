#!/bin/sh
# What "make lint" does. Every check runs, so that one call shows all there is
# to mend; the status is 0 only if none complained.
set -u
STATICCHECK=honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK=golang.org/x/vuln/cmd/govulncheck@v1.9.0
status=0

check() {
	name=$1
	shift
	if out=$("$@" 2>&1); then
		echo "ok    $name"
	else
		echo "FAIL  $name"
		echo "$out" | sed 's/^/      /'
		status=1
	fi
}

# shellcheck disable=SC2317 # it is called, by check
unformatted() {
	list=$(find . -name build -prune -o -name '*.go' -exec gofmt -l -s {} +)
	[ -z "$list" ] || { echo "not formatted (gofmt -s -w mends it):"; echo "$list"; return 1; }
}

# The tools come by "go run", so that they and what they need stay out of go.mod.
check gofmt unformatted
check "go vet" go vet ./...
check "go vet -tags vm,failpoint" go vet -tags vm,failpoint ./...
check staticcheck go run "$STATICCHECK" ./...
check "staticcheck -tags vm,failpoint" go run "$STATICCHECK" -tags vm,failpoint ./...
check "go mod verify" go mod verify

# The figure of docs/safety.md, 10 times; versions of systemd differ a little.
if command -v systemd-analyze >/dev/null; then
	check "hardening of swapbackd.service" systemd-analyze security --offline=true --threshold=27 --no-pager dist/systemd/swapbackd.service
else
	echo "NOT CHECKED  hardening of swapbackd.service: systemd-analyze is missing (apt install systemd)"
fi

# A vulnerability counts; a database that cannot be reached does not.
if out=$(go run "$GOVULNCHECK" ./... 2>&1); then
	echo "ok    govulncheck"
elif echo "$out" | grep -q '^Vulnerability #'; then
	echo "FAIL  govulncheck"
	echo "$out" | sed 's/^/      /'
	status=1
else
	echo "NOT CHECKED  govulncheck: it could not do its work, most likely for want of its database:"
	echo "$out" | tail -n 3 | sed 's/^/      /'
fi
exit $status
