"""What demand comes next: forecasts with bands, always tried on the past before they are believed."""
