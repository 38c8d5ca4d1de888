"""Runs the contenders and makes the report; `bench/run` is the command."""
