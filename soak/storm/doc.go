// Package storm kills swapbackd and swapback-agent at moments that chance
// chooses, under load, and checks every promise of docs/safety.md that outlives
// a process. It holds tests only; they read
//
//	SOAK_KILLS        how often swapbackd is killed
//	SOAK_AGENT_KILLS  how often swapback-agent is killed
//	SOAK_COMMITS      how often swapbackd is killed behind a commit
//	SOAK_UPGRADES     how often swapbackd is replaced
//	SOAK_SEED         what chooses the moments; a failed run prints its own
package storm
