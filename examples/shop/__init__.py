"""An online shop: an order takes stock, charges a card, books a courier and grants loyalty points."""
