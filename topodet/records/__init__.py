"""Results of runs for the documentation: records, the model zoo and the measured parts of pages."""
