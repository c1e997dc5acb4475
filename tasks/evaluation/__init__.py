"""What tests and predictions leave behind: errors on recorded clips, sample videos, files."""
