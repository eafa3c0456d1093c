"""The router: compiles who is able, healthy and allowed into the table that gateways follow."""
