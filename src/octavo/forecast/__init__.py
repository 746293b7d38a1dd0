"""What a cell will cost: step time, device-hours, memory, money; and what others published."""
