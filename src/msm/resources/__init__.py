"""What people declare and what the mesh observes, as typed values. Pure: no clock, no I/O."""
