"""Fidelity: how far an encoding of the teacher's outputs puts a student's gradients off, by loss."""
