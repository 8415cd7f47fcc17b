"""What runs leave for the documentation: records, the model zoo and the measured parts of pages."""
