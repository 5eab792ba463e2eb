"""Fetching other people's photos: politely, safely, and with proof. Knows no stage, no class and no network."""
