package org.acegisecurity.userdetails

/** Jenkins knows the user, but its user directory (LDAP, Unix) does not. */
class UsernameNotFoundException extends RuntimeException {
    UsernameNotFoundException(String message) {
        super(message)
    }
}
