"""Lower precisions: types by layer, calibration, rounding, and the search for layers that must keep higher types."""
