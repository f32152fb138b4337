"""What was drawn and scored, on disk: predicted pictures and sentences."""
