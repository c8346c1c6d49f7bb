"""The platform of services on perdure: trips over flights, hotels, payments and notifications."""
