"""What the predictions of all variants say together: intervals, paired tests, slices, what was inherited."""
