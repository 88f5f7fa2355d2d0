package backup

const childEnv = "SWAPBACK_TEST_CHILD"

func runChild() {}
