"""Meta-World's fifty tasks under plain names, with phrasings of their commands (ours; it publishes none)."""

from collections.abc import Mapping

INSTRUCTIONS: Mapping[str, tuple[str, ...]] = {
    "assembly": (
        "put the ring of the wrench over the peg",
        "place the nut onto the peg",
        "pick up the wrench and slip its ring over the peg",
    ),
    "basketball": (
        "drop the basketball through the hoop",
        "dunk the ball into the basket",
        "put the ball in the hoop",
    ),
    "bin_picking": (
        "move the cube from one bin to the other",
        "pick the cube out of its bin and put it into the other bin",
        "put the cube into the empty bin",
    ),
    "box_close": (
        "put the lid on the box",
        "close the box with its lid",
        "cover the box with the lid",
    ),
    "button_press_topdown": (
        "press the button from above",
        "push the button down",
        "press down on the button",
    ),
    "button_press_topdown_wall": (
        "reach over the wall and press the button from above",
        "press the button down behind the wall",
        "push down the button on the other side of the wall",
    ),
    "button_press": (
        "press the button on the front of the box",
        "push the button in",
        "press the button",
    ),
    "button_press_wall": (
        "reach over the wall and press the button",
        "push in the button behind the wall",
        "press the button on the other side of the wall",
    ),
    "coffee_button": (
        "press the button of the coffee machine",
        "switch on the coffee machine",
        "push the coffee machine's button",
    ),
    "coffee_pull": (
        "pull the mug away from the coffee machine",
        "take the mug from under the coffee machine",
        "drag the mug to the marked place",
    ),
    "coffee_push": (
        "push the mug under the coffee machine",
        "put the mug below the coffee machine's spout",
        "slide the mug to the coffee machine",
    ),
    "dial_turn": (
        "turn the dial",
        "rotate the dial by half a turn",
        "give the dial a turn",
    ),
    "disassemble": (
        "lift the ring of the wrench off the peg",
        "take the nut off the peg",
        "pull the wrench up from the peg",
    ),
    "door_close": (
        "close the door",
        "push the door shut",
        "swing the door closed",
    ),
    "door_lock": (
        "lock the door",
        "turn the lock of the door to its locked position",
        "rotate the door's lock until it is locked",
    ),
    "door_open": (
        "open the door",
        "pull the door open by its handle",
        "swing the door open",
    ),
    "door_unlock": (
        "unlock the door",
        "turn the lock of the door to its open position",
        "rotate the door's lock until it is unlocked",
    ),
    "hand_insert": (
        "put the hand into the hole",
        "lower the gripper into the hole in the table",
        "reach into the hole",
    ),
    "drawer_close": (
        "close the drawer",
        "push the drawer shut",
        "slide the drawer in",
    ),
    "drawer_open": (
        "open the drawer",
        "pull the drawer out",
        "pull the drawer open by its handle",
    ),
    "faucet_open": (
        "open the faucet",
        "turn the faucet's handle to open it",
        "turn on the tap",
    ),
    "faucet_close": (
        "close the faucet",
        "turn the faucet's handle to close it",
        "turn off the tap",
    ),
    "hammer": (
        "hammer the nail into the wall",
        "drive the nail in with the hammer",
        "pick up the hammer and hit the nail",
    ),
    "handle_press_side": (
        "press the handle on the side down",
        "push down the sideways handle",
        "press the handle down from the side",
    ),
    "handle_press": (
        "press the handle down",
        "push down the handle",
        "push the handle to its lower end",
    ),
    "handle_pull_side": (
        "pull the handle on the side up",
        "lift the sideways handle",
        "raise the handle from the side",
    ),
    "handle_pull": (
        "pull the handle up",
        "lift the handle",
        "raise the handle to its upper end",
    ),
    "lever_pull": (
        "pull the lever up",
        "rotate the lever upwards",
        "raise the lever",
    ),
    "pick_place_wall": (
        "carry the puck over the wall to the marked point",
        "pick up the puck and bring it past the wall to the goal",
        "lift the puck over the wall and hold it at the target",
    ),
    "pick_out_of_hole": (
        "pick the puck out of the hole",
        "lift the puck out of the hole to the marked point",
        "take the puck from the hole",
    ),
    "pick_place": (
        "pick up the puck and hold it at the marked point",
        "lift the puck to the goal",
        "carry the puck to the target",
    ),
    "plate_slide": (
        "slide the plate into the goal",
        "push the plate into the cabinet",
        "slide the plate forward into the goal",
    ),
    "plate_slide_side": (
        "slide the plate sideways into the goal",
        "push the plate to the side into the cabinet",
        "slide the plate into the goal beside it",
    ),
    "plate_slide_back": (
        "slide the plate back out of the goal",
        "pull the plate out of the cabinet",
        "move the plate backwards to the marked place",
    ),
    "plate_slide_back_side": (
        "slide the plate sideways out of the goal",
        "pull the plate to the side out of the cabinet",
        "move the plate out of the goal beside it",
    ),
    "peg_insert_side": (
        "insert the peg into the hole in the box",
        "put the peg sideways into the hole",
        "push the peg into the side of the box",
    ),
    "peg_unplug_side": (
        "pull the peg out of the box",
        "unplug the peg sideways",
        "take the plug out of its hole",
    ),
    "soccer": (
        "push the ball into the goal",
        "score a goal with the ball",
        "kick the soccer ball into the goal",
    ),
    "stick_push": (
        "push the box with the stick",
        "pick up the stick and push the container to the marked place",
        "use the stick to push the container",
    ),
    "stick_pull": (
        "pull the box with the stick",
        "pick up the stick and pull the container to the marked place",
        "use the stick to pull the container",
    ),
    "push": (
        "push the puck to the marked place",
        "push the puck to the goal",
        "slide the puck to the target",
    ),
    "push_wall": (
        "push the puck around the wall to the marked place",
        "push the puck past the wall to the goal",
        "slide the puck around the wall to the target",
    ),
    "push_back": (
        "push the puck back to the marked place",
        "pull the puck backwards to the goal",
        "slide the puck back to the target",
    ),
    "reach": (
        "move the hand to the marked point",
        "reach the goal with the gripper",
        "bring the gripper to the target",
    ),
    "reach_wall": (
        "move the hand over the wall to the marked point",
        "reach the goal past the wall with the gripper",
        "bring the gripper around the wall to the target",
    ),
    "shelf_place": (
        "put the cube on the shelf",
        "pick up the cube and place it on the shelf",
        "place the cube on the marked place of the shelf",
    ),
    "sweep_into": (
        "sweep the cube into the hole",
        "push the cube into the hole in the table",
        "sweep the cube off into the hole",
    ),
    "sweep": (
        "sweep the cube off the table",
        "push the cube over the edge of the table",
        "sweep the cube to the marked place at the side",
    ),
    "window_open": (
        "open the window",
        "slide the window open",
        "push the window open by its handle",
    ),
    "window_close": (
        "close the window",
        "slide the window shut",
        "push the window closed by its handle",
    ),
}
VARIATIONS: Mapping[str, int] = dict.fromkeys(INSTRUCTIONS, 1)


def published_name(task: str) -> str:
    """The task's name in Meta-World, such as "push-wall-v3" of "push_wall"."""
    return f"{task.replace('_', '-')}-v3"
