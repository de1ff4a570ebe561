"""The page of a report, and the comparison of the main job."""
