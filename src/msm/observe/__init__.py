"""What people read about the mesh: events and structured logs."""
