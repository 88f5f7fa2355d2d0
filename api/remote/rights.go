package remote

import "github.com/swapback/swapback/api/access"

// rule says what it takes to call an operation of the API from afar.
type rule struct {
	right access.Right
	// local says, when not empty, why the operation is not done for clients from
	// afar at all.
	local string
	// changes says that calls are logged whoever makes them, and however they end.
	changes bool
}

// letsIn is why who may reach the disks themselves is not said from afar.
const letsIn = "it says which hosts reach the storage machine's disks"

// rules holds all of the policy: every operation of the API, by its id. One that
// is not here is refused to everybody, and a test fails.
var rules = map[string]rule{
	"info":         {right: access.List},
	"list-pools":   {right: access.List},
	"show-pool":    {right: access.List},
	"list-volumes": {right: access.List},
	"show-volume":  {right: access.List},
	"list-holders": {right: access.List},
	"list-exports": {right: access.List},
	"show-export":  {right: access.List},
	"metrics":      {right: access.Metrics},

	"open-snapshot":     {right: access.Backup, changes: true},
	"set-descends-from": {right: access.Backup, changes: true},

	// With allow_holders it takes Admin.
	"swap":              {right: access.Swap, changes: true},
	"quarantine-volume": {right: access.Swap, changes: true},

	"create-volume":  {right: access.Manage, changes: true},
	"grow-volume":    {right: access.Manage, changes: true},
	"attach-volume":  {right: access.Manage, changes: true},
	"detach-volume":  {right: access.Manage, changes: true},
	"release-volume": {right: access.Manage, changes: true},
	// With force it takes Admin.
	"delete-volume": {right: access.Manage, changes: true},

	"check-pool":         {right: access.Admin},
	"repair-pool":        {right: access.Admin, changes: true},
	"rejoin-pool":        {right: access.Admin, changes: true},
	"delete-pool":        {right: access.Admin, changes: true},
	"dump-pool-metadata": {right: access.Admin},

	"create-pool": {local: "it names block devices of the storage machine", changes: true},

	"create-export": {local: letsIn, changes: true},
	"change-export": {local: letsIn, changes: true},
	"delete-export": {local: letsIn, changes: true},
}
