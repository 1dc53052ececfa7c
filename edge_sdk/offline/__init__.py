"""Installations for boards without internet: wheels are collected here, and a script installs them there."""
