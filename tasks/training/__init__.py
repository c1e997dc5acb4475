"""What training needs besides the loop: plans of a batch, optimizer, checks, logged means."""
