"""Looking at runs from outside: traces, strips, the ledger, where two runs part, sweeps."""
