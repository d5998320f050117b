"""Which units of a network may be exchanged, what moves with them, and the proof of it."""
