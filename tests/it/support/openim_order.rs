//! In which order callbacks and messages come, and how far from each other, as on real servers.

use super::openim::Operation;
use super::openim_callbacks::Callback;
use super::random::Random;

/// Something that is sent, so much later than it was done.
#[derive(Clone, Debug)]
pub struct Told {
    pub delay_millis: u64,
    pub callback: Callback,
}

/// The first thing that is sent of a request comes so late.
const FIRST: (u64, u64) = (5, 150);
/// Delay of a quit or a kick, from the message to the callback.
const MESSAGE_FIRST: (u64, u64) = (24, 260);
/// From a callback to the message of the same.
const MESSAGE_LATER: (u64, u64) = (4, 45);
/// Callbacks and messages of members that were set are mixed up over so long a time.
const MIXED: (u64, u64) = (0, 300);
/// From a dismissal to that of the push service.
const SECOND_DISMISSAL: (u64, u64) = (60, 700);

/// Each message is one, or two who come one after the other.
pub(super) fn in_order(
    operation: &Operation,
    callbacks: Vec<Callback>,
    messages: Vec<Vec<Callback>>,
    random: &mut Random,
) -> Vec<Told> {
    let mut of = |(least, most): (u64, u64)| least + random.below(most - least + 1);
    let first = of(FIRST);
    let mut told = vec![];
    for (number, callback) in callbacks.into_iter().enumerate() {
        let later = match operation {
            Operation::Quit(_) | Operation::Kick(_) => of(MESSAGE_FIRST),
            Operation::SetMember(..) => of(MIXED),
            Operation::Dismiss { .. } if number > 0 => of(SECOND_DISMISSAL),
            _ => 0,
        };
        told.push((first + later, callback));
    }
    for message in messages {
        let later = match operation {
            Operation::Quit(_) | Operation::Kick(_) => 0,
            Operation::SetMember(..) | Operation::Join(_) => of(MIXED),
            _ => of(MESSAGE_LATER),
        };
        let mut at = first + later;
        for callback in message {
            told.push((at, callback));
            at += of(MESSAGE_LATER);
        }
    }
    told.sort_by_key(|(at, _)| *at);
    let told = told.into_iter();
    told.map(|(delay_millis, callback)| Told {
        delay_millis,
        callback,
    })
    .collect()
}
