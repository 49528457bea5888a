"""Tables, charts and sentences that several analyses show."""
