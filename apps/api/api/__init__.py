"""The Platform API: Heroku's Platform API v3 over the platform's database."""
