"""From emitted source to a call: compile, cache, load, launch, register with torch."""
