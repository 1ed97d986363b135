"""Whether a bundle still answers rightly: measures, and the data that they are taken on."""
