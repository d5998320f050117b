"""Follow an exported network and learn which units lie along which axis of which tensor."""
