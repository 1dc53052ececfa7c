"""Policies that drive robots: a control loop that holds its deadlines and says so (docs/control.md)."""
