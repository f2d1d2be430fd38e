"""The event store: its Redis functions (``lua/``), and the code that writes rows and reads videos."""
