//! A server from its beginning to its end, and the requests that it still owes an answer.

use tokio::sync::watch;

/// Where a server stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It takes requests.
    Ready,
    /// It takes no requests any more, and finishes those that it has.
    Draining,
    /// It ends what is left.
    Stopping,
}

/// The phase of a server, which only moves forward, and its open requests. Clones share both.
#[derive(Debug, Clone)]
pub struct Lifecycle(watch::Sender<State>);

#[derive(Debug, Clone, Copy)]
struct State {
    phase: Phase,
    open: usize,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self(watch::Sender::new(State {
            phase: Phase::Ready,
            open: 0,
        }))
    }
}

impl Lifecycle {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        self.0.borrow().phase
    }

    /// Requests that are accepted and not answered.
    pub fn open(&self) -> usize {
        self.0.borrow().open
    }

    /// Goes on to a phase, unless the server is further already.
    pub fn advance(&self, phase: Phase) {
        self.0
            .send_modify(|state| state.phase = state.phase.max(phase));
    }

    /// Accepts a request, until what is returned is dropped; `None` when requests are not accepted any more.
    pub fn accept(&self) -> Option<OpenRequest> {
        let mut accepted = false;
        self.0.send_modify(|state| {
            accepted = state.phase == Phase::Ready;
            state.open += usize::from(accepted);
        });
        accepted.then(|| OpenRequest(self.clone()))
    }

    /// Waits until the server has come to a phase.
    pub async fn reached(&self, phase: Phase) {
        self.wait(|state| state.phase >= phase).await;
    }

    /// Waits until no request is accepted any more and each is answered.
    pub async fn drained(&self) {
        self.wait(|state| state.phase >= Phase::Draining && state.open == 0)
            .await;
    }

    async fn wait(&self, condition: impl Fn(&State) -> bool) {
        let mut states = self.0.subscribe();
        let waited = states.wait_for(condition).await;
        waited.expect("the sender is in self");
    }
}

/// A request that is accepted, and answered when this is dropped.
#[derive(Debug)]
pub struct OpenRequest(Lifecycle);

impl OpenRequest {
    /// Where the server stands.
    pub fn phase(&self) -> Phase {
        self.0.phase()
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.open -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn phases_only_move_forward() {
        let lifecycle = Lifecycle::default();
        lifecycle.clone().advance(Phase::Stopping);
        lifecycle.advance(Phase::Draining);
        assert_eq!(lifecycle.phase(), Phase::Stopping);
    }

    #[test]
    fn a_server_is_drained_when_it_has_answered_what_it_accepted() {
        let lifecycle = Lifecycle::default();
        let mut drained = pin!(lifecycle.drained());
        let context = &mut Context::from_waker(Waker::noop());
        assert_eq!(drained.as_mut().poll(context), Poll::Pending);
        let request = lifecycle.accept().unwrap();
        lifecycle.advance(Phase::Draining);
        assert!(lifecycle.accept().is_none());
        assert_eq!(drained.as_mut().poll(context), Poll::Pending);
        drop(request);
        assert_eq!(drained.as_mut().poll(context), Poll::Ready(()));
    }
}
