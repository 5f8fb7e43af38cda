"""The report: one HTML page about one or several runs, made from their folders alone."""
