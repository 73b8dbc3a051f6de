"""The page on which people read a run's draws and say which traces are good: labels a page at a time, served here."""
