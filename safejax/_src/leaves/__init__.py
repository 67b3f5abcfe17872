"""Leaves: what a pytree holds, by name, and the steps that map trees and Leaves."""
