"""Budgets: what a request may cost is held before it is made, and what it did cost is charged at its end."""

from maestro_gateway.budgets.bill import CHEAPER, Bill, sent_cheaper
from maestro_gateway.budgets.doubts import doubting
from maestro_gateway.budgets.keeper import Budgets, budgeting
from maestro_gateway.budgets.seeds import Spending
from maestro_gateway.budgets.wills import leaving_wills

__all__ = ["CHEAPER", "Bill", "Budgets", "Spending", "budgeting", "doubting", "leaving_wills", "sent_cheaper"]
