"""A policy as a service: sessions, batches over all of them, limits, metrics (`ai-wam serve`)."""
