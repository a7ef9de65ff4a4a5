"""Simulated devices and consumers, and the ledger of what was delivered."""
