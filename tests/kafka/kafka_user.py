"""Who the tests are to the brokers that ask by SASL."""

USER, PASSWORD = "collector", "s3cret-of-the-tests"
