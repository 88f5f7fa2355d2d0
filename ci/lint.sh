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

# exposed FILE UNIT holds a unit to the figure that docs/safety.md gives, in
# tenths; versions of systemd differ a little.
# shellcheck disable=SC2317 # it is called, by check
exposed() {
	command -v systemd-analyze >/dev/null || { echo "systemd-analyze is missing (apt-get install systemd)"; return 1; }
	report=$(systemd-analyze security --offline=true --no-pager "dist/systemd/$1") || { echo "$report"; return 1; }
	is=$(echo "$report" | figure "$2")
	said=$(figure "$2" <docs/safety.md)
	[ -n "$is" ] && [ -n "$said" ] || { echo "no figure of $2: docs/safety.md has '$said', systemd-analyze '$is'"; return 1; }
	[ "$is" -le $((said + 3)) ] && [ "$is" -ge $((said - 3)) ] ||
		{ echo "systemd-analyze says $is tenths, docs/safety.md $said"; echo "$report"; return 1; }
}

# shellcheck disable=SC2317 # see above
figure() { sed -n "s/.*exposure level for $1: \([0-9]*\)\.\([0-9]\) .*/\1\2/p"; }

# The tools come by "go run", so that they and what they need stay out of go.mod.
check gofmt unformatted
check "go vet" go vet ./...
check "go vet -tags vm,failpoint" go vet -tags vm,failpoint ./...
check staticcheck go run "$STATICCHECK" ./...
check "staticcheck -tags vm,failpoint" go run "$STATICCHECK" -tags vm,failpoint ./...
check "go mod verify" go mod verify

check "hardening of swapbackd.service" exposed swapbackd.service swapbackd.service
check "hardening of swapback-agent@.service" exposed swapback-agent@.service swapback-agent@i.service

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
