"""What a comparison or a study leaves for people: tables, figures, reports."""
