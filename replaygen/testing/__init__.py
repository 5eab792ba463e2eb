"""Servers on loopback that speak the real protocols, for tests: this project's own, and yours."""
