package main

func writeReport(dir string) error { return nil }
