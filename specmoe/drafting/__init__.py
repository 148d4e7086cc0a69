"""The draft model: which experts draft and which expert substitutes for one that cannot."""
