"""Tests of the packages, and of what checks and publishes them."""
